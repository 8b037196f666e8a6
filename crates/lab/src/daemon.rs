//! A flanneld of a node: started, stopped, killed, started again, asked whether it is ready.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::error::Doing;
use crate::ground::Ground;
use crate::http::http_get;
use crate::process::{Process, tail};
use crate::seccomp::{self, Seccomp};
use crate::usage::{Usage, usage};
use crate::{BIN_DIR, Error, Namespace, SubnetEnv, wait_for};

/// How one flanneld differs from the others of its node.
#[derive(Clone, Debug)]
pub struct Instance {
    /// Its name in messages and of its log.
    pub name: String,
    /// Arguments after those that the lab gives.
    pub args: Vec<String>,
    /// Environment variables.
    pub env: Vec<(String, String)>,
    /// The `subnet.env` that it writes. `--subnet-file` is given unless it is the default one.
    pub subnet_file: String,
    /// Where it answers `/readyz`, on 127.0.0.1.
    pub healthz_port: u16,
}

/// Where `subnet.env` is unless told otherwise.
const SUBNET_FILE: &str = "/run/flannel/subnet.env";

impl Default for Instance {
    fn default() -> Self {
        Instance {
            name: "flanneld".into(),
            args: Vec::new(),
            env: Vec::new(),
            subnet_file: SUBNET_FILE.into(),
            healthz_port: 10471,
        }
    }
}

/// A flanneld, running or not. Dropping it kills it.
#[derive(Debug)]
pub struct Daemon {
    place: Namespace,
    log: PathBuf,
    common_args: Vec<String>,
    instance: Mutex<Instance>,
    seccomp: Mutex<Option<Seccomp>>,
    process: Mutex<Option<Arc<Process>>>,
}

impl Daemon {
    pub(crate) fn new(
        place: &Namespace,
        ground: &Ground,
        common_args: &[String],
        instance: Instance,
    ) -> Daemon {
        Daemon {
            place: place.clone(),
            log: ground
                .dir()
                .join(format!("log/{}-{}", place.name(), instance.name)),
            common_args: common_args.to_vec(),
            instance: Mutex::new(instance),
            seccomp: Mutex::default(),
            process: Mutex::default(),
        }
    }

    /// Its name with its node's: `n1-flanneld`.
    pub fn name(&self) -> String {
        format!("{}-{}", self.place.name(), self.instance().name)
    }

    /// Sets the arguments of the next start, after those that the lab gives.
    pub fn set_args<S: Into<String>>(&self, args: impl IntoIterator<Item = S>) {
        lock(&self.instance).args = args.into_iter().map(Into::into).collect();
    }

    /// Sets the seccomp profile of the next start, in place of the one that `$FLANNEL_LAB_SECCOMP` names.
    pub fn set_seccomp(&self, profile: Seccomp) {
        *lock(&self.seccomp) = Some(profile);
    }

    fn seccomp(&self) -> Result<Option<Seccomp>, Error> {
        match (&*lock(&self.seccomp), std::env::var_os(seccomp::VARIABLE)) {
            (Some(given), _) => Ok(Some(given.clone())),
            (None, Some(file)) => Seccomp::read(file.as_ref()).map(Some),
            (None, None) => Ok(None),
        }
    }

    /// Starts it; an instance that runs already is an error.
    ///
    /// # Errors
    /// It runs, or cannot be started.
    pub fn start(&self) -> Result<(), Error> {
        let mut process = lock(&self.process);
        if let Some(old) = &*process
            && old.ended()?.is_none()
        {
            return Err(Error::Bad(format!(
                "{} runs already, process {}",
                self.name(),
                old.pid()
            )));
        }
        *process = Some(Arc::new(Process::start_confined(
            &self.name(),
            &self.place,
            &mut self.command(),
            &self.log,
            self.seccomp()?.as_ref(),
        )?));
        Ok(())
    }

    /// The command that starts it.
    fn command(&self) -> Command {
        let instance = self.instance();
        let mut command = Command::new(format!("{BIN_DIR}/flanneld"));
        // Nothing of this process's own supervisor or settings.
        let foreign = std::env::vars_os().map(|(name, _)| name);
        foreign
            .filter(|name| name.to_string_lossy().starts_with("FLANNELD_"))
            .for_each(|name| {
                command.env_remove(name);
            });
        command
            .env_remove("NOTIFY_SOCKET")
            .env_remove("WATCHDOG_USEC")
            .env_remove("WATCHDOG_PID");
        command
            .env("NODE_NAME", self.place.name())
            .args(&self.common_args);
        command
            .arg("--healthz-ip=127.0.0.1")
            .arg(format!("--healthz-port={}", instance.healthz_port));
        if instance.subnet_file != SUBNET_FILE {
            command.arg(format!("--subnet-file={}", instance.subnet_file));
        }
        command.args(&instance.args).envs(instance.env);
        command
    }

    /// Waits until it answers ready and its `subnet.env` can be read.
    ///
    /// # Errors
    /// It has ended, or was not ready when `deadline` had passed: with the end of its log.
    pub fn wait_ready(&self, deadline: Duration) -> Result<SubnetEnv, Error> {
        let process = self.process()?;
        let mut ended = Ok(());
        let ready = wait_for(&format!("{} is ready", self.name()), deadline, || {
            ended = process.must_run();
            if ended.is_err() {
                return Ok(None);
            }
            let said = |e: Error| format!("{e}; its log ends with:\n{}", process.log_tail(20));
            match self.http_get("/readyz").map_err(said)? {
                (200, _) => self.subnet_env().map(Some).map_err(said),
                (status, body) => Err(said(Error::Bad(format!(
                    "/readyz answers {status} {body:?}"
                )))),
            }
        })?;
        ended.and_then(|()| {
            ready.ok_or_else(|| Error::Bad(format!("{} is not running", self.name())))
        })
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// As [`Daemon::start`] and [`Daemon::wait_ready`].
    pub fn start_ready(&self, deadline: Duration) -> Result<SubnetEnv, Error> {
        self.start()?;
        self.wait_ready(deadline)
    }

    /// Asks its health server for `path`; returns status and body.
    ///
    /// # Errors
    /// It does not answer.
    pub fn http_get(&self, path: &str) -> Result<(u16, String), Error> {
        http_get(&self.place, self.instance().healthz_port, path)
    }

    /// Its `subnet.env`.
    ///
    /// # Errors
    /// It is not there or cannot be read.
    pub fn subnet_env(&self) -> Result<SubnetEnv, Error> {
        let path = self.instance().subnet_file;
        let text = self.place.run(|| fs::read_to_string(&path))?;
        SubnetEnv::parse(&text.doing(|| format!("{}: {path}", self.place.name()))?)
    }

    /// `SIGTERM`, and waits up to 10 s for the end.
    ///
    /// # Errors
    /// It does not run or did not end.
    pub fn stop(&self) -> Result<ExitStatus, Error> {
        let process = self.process()?;
        process.signal(Signal::SIGTERM)?;
        process.wait(Duration::from_secs(10))
    }

    /// `SIGKILL`, and waits for the end.
    ///
    /// # Errors
    /// It was never started.
    pub fn kill9(&self) -> Result<ExitStatus, Error> {
        self.process()?.kill9()
    }

    /// `SIGSTOP`: it lives, and does nothing until [`Daemon::thaw`].
    ///
    /// # Errors
    /// It was never started.
    pub fn freeze(&self) -> Result<(), Error> {
        self.process()?.signal(Signal::SIGSTOP)
    }

    /// `SIGCONT`.
    ///
    /// # Errors
    /// It was never started.
    pub fn thaw(&self) -> Result<(), Error> {
        self.process()?.signal(Signal::SIGCONT)
    }

    /// Stops it, starts it again and waits until it is ready.
    ///
    /// # Errors
    /// As its parts.
    pub fn restart(&self, deadline: Duration) -> Result<SubnetEnv, Error> {
        self.stop()?;
        self.start_ready(deadline)
    }

    /// How it ended; `None` while it runs.
    ///
    /// # Errors
    /// It was never started.
    pub fn ended(&self) -> Result<Option<ExitStatus>, Error> {
        self.process()?.ended()
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// [`Error::Timeout`], with the end of its log.
    pub fn wait_ended(&self, deadline: Duration) -> Result<ExitStatus, Error> {
        self.process()?.wait(deadline)
    }

    /// All that it has written so far, over every start.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The last `lines` of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.log, lines)
    }

    /// Its process id, as this process sees it.
    ///
    /// # Errors
    /// It was never started.
    pub fn pid(&self) -> Result<u32, Error> {
        Ok(self.process()?.pid())
    }

    /// What it has used since its start.
    ///
    /// # Errors
    /// It does not run.
    pub fn usage(&self) -> Result<Usage, Error> {
        usage(self.pid()?)
    }

    fn process(&self) -> Result<Arc<Process>, Error> {
        lock(&self.process)
            .clone()
            .ok_or_else(|| Error::Bad(format!("{} was never started", self.name())))
    }

    fn instance(&self) -> Instance {
        lock(&self.instance).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
