//! `dist/mk-docker-opts.sh`: what comes out for what goes in, under each shell that may be `/bin/sh`.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

/// Debian's packages dash, busybox and bash.
const SHELLS: [&[&str]; 3] = [&["dash"], &["busybox", "sh"], &["bash", "--posix"]];

const FULL: &str = "FLANNEL_NETWORK=172.30.0.0/16\nFLANNEL_SUBNET=172.30.80.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

struct Scene {
    dir: TempDir,
    shell: &'static [&'static str],
}

impl Scene {
    /// The same test under every shell.
    fn each(test: impl Fn(&Scene)) {
        for shell in SHELLS {
            let dir = tempfile::Builder::new()
                .prefix("mk-docker-opts-")
                .tempdir()
                .unwrap();
            fs::write(dir.path().join("subnet.env"), FULL).unwrap();
            test(&Scene { dir, shell });
        }
    }

    /// Runs the script in the scene's directory with nothing else in its environment.
    fn run(&self, args: &[&str], vars: &[(&str, &str)]) -> Output {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../dist/mk-docker-opts.sh");
        Command::new(self.shell[0])
            .args(&self.shell[1..])
            .arg(script.canonicalize().unwrap())
            .args(args)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .envs(vars.iter().copied())
            .current_dir(self.dir.path())
            .output()
            .unwrap_or_else(|error| panic!("{}: {error}: is it installed?", self.shell[0]))
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.path().join(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }

    /// The names in the scene's directory.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[track_caller]
    fn fails(&self, args: &[&str], named: &str) {
        self.write("out", "the old one\n");
        let output = self.run(args, &[]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{:?} {said}", self.shell);
        assert!(said.contains(named), "{:?} {named} in: {said}", self.shell);
        assert!(output.stdout.is_empty());
        assert_eq!(
            self.read("out"),
            "the old one\n",
            "the old file is left alone"
        );
        assert!(self.names().iter().all(|name| !name.starts_with('.')));
    }
}

const FILES: [&str; 4] = ["-f", "subnet.env", "-d", "out"];

#[test]
fn every_combination_of_flags() {
    let bip = "DOCKER_OPT_BIP=\"--bip=172.30.80.1/24\"\n";
    let masq = "DOCKER_OPT_IPMASQ=\"--ip-masq=false\"\n";
    let mtu = "DOCKER_OPT_MTU=\"--mtu=1450\"\n";
    let all = " --bip=172.30.80.1/24 --ip-masq=false --mtu=1450\"\n";
    let less = " --bip=172.30.80.1/24 --mtu=1450\"\n";
    let table = [
        (&[][..], format!("{bip}{masq}{mtu}DOCKER_OPTS=\"{all}")),
        (&["-i"], format!("{bip}{masq}{mtu}")),
        (&["-c"], format!("DOCKER_OPTS=\"{all}")),
        (
            &["-i", "-c"],
            format!("{bip}{masq}{mtu}DOCKER_OPTS=\"{all}"),
        ),
        (&["-m"], format!("{bip}{mtu}DOCKER_OPTS=\"{less}")),
        (&["-im"], format!("{bip}{mtu}")),
        (&["-cm"], format!("DOCKER_OPTS=\"{less}")),
        (
            &["-k", "DOCKER_NETWORK_OPTIONS"],
            format!("{bip}{masq}{mtu}DOCKER_NETWORK_OPTIONS=\"{all}"),
        ),
        (&["-c", "-kX_1"], format!("X_1=\"{all}")),
        (&["-i", "-k", "IGNORED"], format!("{bip}{masq}{mtu}")),
    ];
    Scene::each(|scene| {
        for (flags, expected) in &table {
            let output = scene.run(&[&FILES[..], flags].concat(), &[]);
            assert!(
                output.status.success(),
                "{:?} {flags:?} {output:?}",
                scene.shell
            );
            assert!(output.stdout.is_empty() && output.stderr.is_empty());
            assert_eq!(&scene.read("out"), expected, "{:?} {flags:?}", scene.shell);
        }
        let mode = fs::metadata(scene.dir.path().join("out"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o644);
        assert_eq!(scene.names(), ["out", "subnet.env"]);
    });
}

#[test]
fn every_kind_of_subnet_file() {
    let table = [
        (
            FULL.replace("=true", "=false"),
            "--bip=172.30.80.1/24 --ip-masq=true --mtu=1450",
        ),
        (
            format!("{FULL}FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00::1/64\n"),
            "--bip=172.30.80.1/24 --ip-masq=false --mtu=1450",
        ),
        (
            FULL.replace("172.30.0.0/16", "172.30.0.0/16,10.0.0.0/8"),
            "--bip=172.30.80.1/24 --ip-masq=false --mtu=1450",
        ),
        (
            format!("# by hand\n\n{FULL}FLANNEL_MTU=\"1400\" # for the VPN\n"),
            "--bip=172.30.80.1/24 --ip-masq=false --mtu=1400",
        ),
        // Cut off, but nothing is lost.
        (
            FULL.trim_end().to_owned(),
            "--bip=172.30.80.1/24 --ip-masq=false --mtu=1450",
        ),
    ];
    Scene::each(|scene| {
        for (env, expected) in &table {
            scene.write("subnet.env", env);
            let output = scene.run(&[&FILES[..], &["-c"]].concat(), &[]);
            assert!(
                output.status.success(),
                "{:?} {env} {output:?}",
                scene.shell
            );
            assert_eq!(
                scene.read("out"),
                format!("DOCKER_OPTS=\" {expected}\"\n"),
                "{:?} {env}",
                scene.shell
            );
        }
        // The file is data: nothing in it is run.
        scene.write(
            "subnet.env",
            &format!("{FULL}touch ran\nX=$(touch ran)\nFLANNEL_NETWORK=`touch ran`\n"),
        );
        assert!(scene.run(&FILES, &[]).status.success());
        assert_eq!(scene.names(), ["out", "subnet.env"]);
    });
}

#[test]
fn what_the_variable_holds_is_kept() {
    Scene::each(|scene| {
        let combined = |key: &str, vars: &[(&str, &str)]| {
            let output = scene.run(&[&FILES[..], &["-c", "-k", key]].concat(), vars);
            assert!(output.status.success(), "{output:?}");
            scene.read("out")
        };
        let options = "--bip=172.30.80.1/24 --ip-masq=false --mtu=1450";
        assert_eq!(
            combined(
                "OPTS",
                &[
                    ("OPTS", "--debug --dns 10.0.0.1"),
                    ("DOCKER_OPTS", "not this")
                ]
            ),
            format!("OPTS=\"--debug --dns 10.0.0.1  {options}\"\n")
        );
        // Whatever it holds, a shell and systemd read back.
        let odd = r#"--label "a b" $HOME `id` \n 'x'"#;
        let text = combined("OPTS", &[("OPTS", odd)]);
        let output = Command::new("sh")
            .args(["-c", ". ./out; printf %s \"$OPTS\""])
            .current_dir(scene.dir.path())
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            format!("{odd}  {options}"),
            "{text}"
        );
        // Names that the script itself uses.
        for key in [
            "subnet", "opt", "new", "held", "masq", "bip_opt", "mtu", "combined", "line", "dir",
        ] {
            assert_eq!(
                combined(key, &[]),
                format!("{key}=\" {options}\"\n"),
                "nothing is held"
            );
            assert_eq!(
                combined(key, &[(key, "--debug")]),
                format!("{key}=\"--debug  {options}\"\n")
            );
        }
        assert!(combined("PATH", &[]).ends_with(&format!("{options}\"\n")));
        // The environment's own FLANNEL_* are not the file's.
        assert_eq!(
            combined("OPTS", &[("FLANNEL_MTU", "9000"), ("FLANNEL_SUBNET", "x")]),
            format!("OPTS=\" {options}\"\n")
        );
    });
}

#[test]
fn options_of_the_environment_are_written_too() {
    Scene::each(|scene| {
        let run = |args: &[&str], vars: &[(&str, &str)]| {
            let output = scene.run(&[&FILES[..], args].concat(), vars);
            assert!(output.status.success(), "{output:?}");
            scene.read("out")
        };
        let dns = ("DOCKER_OPT_DNS", "--dns=10.0.0.1");
        assert_eq!(
            run(&[], &[dns]),
            "DOCKER_OPT_BIP=\"--bip=172.30.80.1/24\"\nDOCKER_OPT_DNS=\"--dns=10.0.0.1\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=false\"\nDOCKER_OPT_MTU=\"--mtu=1450\"\nDOCKER_OPTS=\" --bip=172.30.80.1/24 --dns=10.0.0.1 --ip-masq=false --mtu=1450\"\n"
        );
        // The file's own ones count more; what -m leaves out is the file's.
        let old = [
            ("DOCKER_OPT_MTU", "--mtu=9000"),
            ("DOCKER_OPT_IPMASQ", "--ip-masq=true"),
        ];
        assert_eq!(
            run(&["-m", "-c"], &old),
            "DOCKER_OPTS=\" --bip=172.30.80.1/24 --ip-masq=true --mtu=1450\"\n"
        );
        // No name in a value, and no command.
        let odd = [
            ("A", "x\nDOCKER_OPT_$(touch pwned)=1"),
            ("DOCKER_OPT_B", "`touch pwned` \"$(touch pwned)\""),
        ];
        run(&[], &odd);
        assert!(!scene.names().contains(&"pwned".to_owned()));
    });
}

#[test]
fn another_route_to_the_own_subnet_is_named() {
    Scene::each(|scene| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../dist/mk-docker-opts.sh");
        let script = script.canonicalize().unwrap();
        let line = format!(
            "ip link add v0 type veth peer name v1 && ip addr add 192.0.2.1/24 dev v0 && ip link set v1 up && ip link set v0 up && \
             ip route add 172.30.80.0/25 via 192.0.2.9 && {0} {1} -f subnet.env -d out && \
             ip route add 172.30.80.0/24 via 192.0.2.9 && {0} {1} -f subnet.env -d out",
            scene.shell.join(" "),
            script.display()
        );
        let output = Command::new("unshare")
            .args(["-n", "sh", "-c", &line])
            .current_dir(scene.dir.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert_eq!(
            said.matches("172.30.80.0/24 via 192.0.2.9").count(),
            1,
            "{said}"
        );
        // As upstream: the options are written nevertheless.
        assert!(scene.read("out").contains("--bip=172.30.80.1/24"));
    });
}

#[test]
fn a_missing_or_half_written_file_leaves_the_old_output_alone() {
    Scene::each(|scene| {
        scene.fails(
            &["-f", "absent.env", "-d", "out"],
            "absent.env does not exist",
        );
        // Where it was cut between two lines nobody can tell; both flannelds replace the file whole.
        let cuts = (0..FULL.trim_end().len()).filter(|&length| !FULL[..length].ends_with('\n'));
        for length in cuts {
            scene.write("subnet.env", &FULL[..length]);
            scene.fails(&FILES, "subnet.env");
        }
        scene.write("subnet.env", "FLANNEL_NETWORK=172.30.0.0/16\n");
        scene.fails(&FILES, "lacks FLANNEL_SUBNET");
        // Without --ip-masq its variable is not needed, but a number that may have been longer is none.
        scene.write(
            "subnet.env",
            "FLANNEL_SUBNET=172.30.80.1/24\nFLANNEL_MTU=14",
        );
        scene.fails(
            &[&FILES[..], &["-m"]].concat(),
            "cut off at 'FLANNEL_MTU=14'",
        );
        for (line, named) in [
            (
                "FLANNEL_IPMASQ=maybe",
                "FLANNEL_IPMASQ=maybe is neither true nor false",
            ),
            (
                "FLANNEL_IPMASQ=TRUE",
                "FLANNEL_IPMASQ=TRUE is neither true nor false",
            ),
            ("FLANNEL_MTU=14x", "FLANNEL_MTU=14x is not a number"),
            (
                "FLANNEL_MTU=99999999999",
                "FLANNEL_MTU=99999999999 is not a number",
            ),
            ("FLANNEL_MTU=65536", "from 0 to 65535"),
            ("FLANNEL_SUBNET=1...4/24", "FLANNEL_SUBNET=1...4/24 is not"),
            ("FLANNEL_SUBNET=.../2.", "FLANNEL_SUBNET=.../2. is not"),
            (
                "FLANNEL_SUBNET=999.1.1.1/24",
                "FLANNEL_SUBNET=999.1.1.1/24 is not",
            ),
            (
                "FLANNEL_SUBNET=1.2.3.4./24",
                "FLANNEL_SUBNET=1.2.3.4./24 is not",
            ),
            (
                "FLANNEL_SUBNET=1.2.3.4.5/24",
                "FLANNEL_SUBNET=1.2.3.4.5/24 is not",
            ),
            (
                "FLANNEL_SUBNET=1.2.3.4/33",
                "FLANNEL_SUBNET=1.2.3.4/33 is not",
            ),
            ("FLANNEL_SUBNET=1.2.3.4", "FLANNEL_SUBNET=1.2.3.4 is not"),
            (
                "FLANNEL_SUBNET=fd00::1/64",
                "FLANNEL_SUBNET=fd00::1/64 is not",
            ),
            (
                "FLANNEL_SUBNET=10.0.0.1/24 --insecure",
                "FLANNEL_SUBNET=10.0.0.1/24 --insecure is not",
            ),
        ] {
            scene.write("subnet.env", &format!("{FULL}{line}\n"));
            scene.fails(&FILES, named);
        }
        scene.write(
            "subnet.env",
            "FLANNEL_SUBNET=172.30.80.1/24\nFLANNEL_MTU=1450\n",
        );
        assert!(
            scene
                .run(&[&FILES[..], &["-m"]].concat(), &[])
                .status
                .success()
        );
    });
}

#[test]
fn what_the_file_does_not_say_is_left_out() {
    Scene::each(|scene| {
        for (env, expected, named) in [
            (
                "FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
                "DOCKER_OPT_IPMASQ=\"--ip-masq=false\"\nDOCKER_OPT_MTU=\"--mtu=1450\"\nDOCKER_OPTS=\" --ip-masq=false --mtu=1450\"\n",
                "only IPv6: --bip is left out",
            ),
            (
                "FLANNEL_SUBNET=172.30.80.1/24\n",
                "DOCKER_OPT_BIP=\"--bip=172.30.80.1/24\"\nDOCKER_OPTS=\" --bip=172.30.80.1/24\"\n",
                "no FLANNEL_MTU: --mtu is left out",
            ),
            // As a shell reads it.
            (
                "export FLANNEL_SUBNET='172.30.80.1/24'\r\nFLANNEL_MTU=\"1450\" \nFLANNEL_IPMASQ=true \n",
                "DOCKER_OPT_BIP=\"--bip=172.30.80.1/24\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=false\"\nDOCKER_OPT_MTU=\"--mtu=1450\"\nDOCKER_OPTS=\" --bip=172.30.80.1/24 --ip-masq=false --mtu=1450\"\n",
                "",
            ),
        ] {
            scene.write("subnet.env", env);
            let output = scene.run(&FILES, &[]);
            assert!(output.status.success(), "{output:?}");
            assert_eq!(scene.read("out"), expected, "{:?}", scene.shell);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(said.contains(named), "{:?} {said}", scene.shell);
            assert_eq!(said.is_empty(), named.is_empty(), "{said}");
        }
    });
}

#[test]
fn what_cannot_be_replaced_is_written_in_place() {
    let expected = "DOCKER_OPTS=\" --bip=172.30.80.1/24 --ip-masq=false --mtu=1450\"\n";
    Scene::each(|scene| {
        let path = |name: &str| scene.dir.path().join(name);
        assert!(
            Command::new("mkfifo")
                .arg(path("fifo"))
                .status()
                .unwrap()
                .success()
        );
        let reader = {
            let fifo = path("fifo");
            std::thread::spawn(move || fs::read_to_string(fifo).unwrap())
        };
        let output = scene.run(&["-c", "-f", "subnet.env", "-d", "fifo"], &[]);
        assert!(output.status.success(), "{:?} {output:?}", scene.shell);
        assert_eq!(reader.join().unwrap(), expected, "{:?}", scene.shell);
        assert!(!path("fifo").is_file());

        // As `docker run -v FILE:FILE` mounts it.
        scene.write(
            "outside",
            "the old one, which is longer than the new one is going to be, by a few words\n",
        );
        scene.write("inside", "");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../dist/mk-docker-opts.sh");
        let line = format!(
            "mount --bind outside inside && exec {} '{}' -c -f subnet.env -d inside",
            scene.shell.join(" "),
            script.canonicalize().unwrap().display()
        );
        let output = Command::new("unshare")
            .args(["--mount", "sh", "-c", &line])
            .current_dir(scene.dir.path())
            .env_remove("DOCKER_OPTS")
            .output()
            .unwrap();
        assert!(output.status.success(), "{:?} {output:?}", scene.shell);
        assert_eq!(scene.read("outside"), expected, "{:?}", scene.shell);
        assert!(scene.names().iter().all(|name| !name.starts_with('.')));
    });
}

#[test]
fn wrong_arguments_are_refused() {
    Scene::each(|scene| {
        scene.fails(&[&FILES[..], &["-x"]].concat(), "usage:");
        scene.fails(&[&FILES[..], &["-k"]].concat(), "usage:");
        scene.fails(
            &[&FILES[..], &["more"]].concat(),
            "unexpected argument 'more'",
        );
        for key in ["", "1X", "A B", "A;touch ran", "A-B", "é"] {
            scene.fails(
                &[&FILES[..], &["-k", key]].concat(),
                "is not a variable's name",
            );
        }
        let help = scene.run(&["-h"], &[]);
        assert!(help.status.success() && String::from_utf8_lossy(&help.stdout).contains("usage:"));
        fs::create_dir(scene.dir.path().join("dir")).unwrap();
        scene.fails(&["-f", "subnet.env", "-d", "dir"], "dir is a directory");
        scene.fails(&["-f", "subnet.env", "-d", "subnet.env/x"], "subnet.env/x");
    });
}

#[test]
fn the_output_can_be_anywhere() {
    Scene::each(|scene| {
        let flags = ["-c", "-f", "subnet.env", "-d"];
        let run = |out: &str| {
            let output = scene.run(&[&flags[..], &[out]].concat(), &[]);
            assert!(
                output.status.success(),
                "{:?} {out} {output:?}",
                scene.shell
            );
            output
        };
        let expected = "DOCKER_OPTS=\" --bip=172.30.80.1/24 --ip-masq=false --mtu=1450\"\n";
        run("new dir/sub/out");
        assert_eq!(scene.read("new dir/sub/out"), expected);
        assert_eq!(run("/dev/stdout").stdout, expected.as_bytes());
        // A link stays one.
        std::os::unix::fs::symlink("new dir/target", scene.dir.path().join("link")).unwrap();
        run("link");
        assert_eq!(scene.read("new dir/target"), expected);
        assert!(scene.dir.path().join("link").is_symlink());
    });
}
