//! What the rest of the node sees of the daemon: subnet.env, the service manager's socket, the health
//! port.

use std::os::unix::net::UnixDatagram;
use std::time::Instant;

use lab::{Instance, Lab, wait_for};

use crate::scene::{self, SOON};

/// At whatever moment it dies, the file is the old one or the new one, and whole.
#[test]
fn the_subnet_file_is_never_half_written() {
    let lab = scene::lab().nodes(1).build().unwrap();
    let node = lab.node(1);
    let whole = node.flanneld().start_ready(SOON).unwrap();
    node.flanneld().kill9().unwrap();
    // Without its file a node first asks whether another one holds its lease: some seconds.
    node.exec(["rm", "-rf", "/run/flannel"]).unwrap();
    let start = Instant::now();
    node.flanneld().start_ready(SOON).unwrap();
    let ready = start.elapsed();
    node.flanneld().kill9().unwrap();
    let (mut absent, mut present) = (0, 0);
    // From shortly before the file was there to shortly after; on a machine that has become slower or faster since,
    // ever later or earlier, until both have been seen.
    let mut moments: Vec<f64> = (0..10)
        .map(|round| 0.95 + f64::from(round) / 90.0)
        .collect();
    let (mut later, mut earlier) = (vec![8.0, 4.0, 2.0], vec![0.1, 0.3, 0.6, 0.8]);
    moments.reverse();
    loop {
        let late = match moments.pop() {
            Some(late) => late,
            None if present == 0 => match later.pop() {
                Some(late) => late,
                None => break,
            },
            None if absent == 0 => match earlier.pop() {
                Some(late) => late,
                None => break,
            },
            None => break,
        };
        node.exec(["rm", "-rf", "/run/flannel"]).unwrap();
        node.flanneld().start().unwrap();
        let moment = Instant::now() + ready.mul_f64(late);
        while Instant::now() < moment {
            std::thread::park_timeout(moment.saturating_duration_since(Instant::now()));
        }
        node.flanneld().kill9().unwrap();
        match node.read("/run/flannel/subnet.env") {
            Ok(text) => {
                assert_eq!(lab::SubnetEnv::parse(&text).unwrap(), whole);
                present += 1;
            }
            Err(_) => absent += 1,
        }
    }
    eprintln!("killed: {absent} times before the file was there, {present} times after");
    assert!(
        absent > 0 && present > 0,
        "{absent}, {present}: the moments are not around it"
    );
}

/// A service manager, as far as the daemon sees one.
struct Manager(UnixDatagram);

impl Manager {
    fn new(lab: &Lab) -> Manager {
        let socket = UnixDatagram::bind(lab.shared_dir().join("notify")).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        Manager(socket)
    }

    fn hears(&self) -> String {
        let mut buffer = [0; 4096];
        let n = self.0.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..n].to_vec()).unwrap()
    }

    /// Nothing has been said but what the daemon waits for.
    fn is_told_what_is_waited_for(&self) {
        let said = self.hears();
        assert!(said.starts_with("STATUS=starting: "), "{said}");
        self.0.set_nonblocking(true).unwrap();
        let mut buffer = [0; 4096];
        while let Ok(n) = self.0.recv(&mut buffer) {
            let said = String::from_utf8_lossy(&buffer[..n]);
            assert!(said.starts_with("STATUS=starting: "), "{said}");
        }
        self.0.set_nonblocking(false).unwrap();
    }
}

#[test]
fn a_service_manager_is_told_when_it_is_ready_and_that_it_lives() {
    let lab = scene::lab().nodes(1).build().unwrap();
    lab.delete_config().unwrap();
    let manager = Manager::new(&lab);
    let node = lab.node(1);
    let daemon = node.another(Instance {
        name: "notify".into(),
        env: vec![
            ("NOTIFY_SOCKET".into(), "/run/lab/notify".into()),
            ("WATCHDOG_USEC".into(), "1000000".into()),
        ],
        ..Instance::default()
    });
    daemon.start().unwrap();
    wait_for("it waits for its configuration", SOON, || {
        match daemon.log().contains("WARN") {
            true => Ok(()),
            false => Err("it says nothing"),
        }
    })
    .unwrap();
    assert_eq!(daemon.http_get("/readyz").unwrap().0, 503);
    assert_eq!(daemon.http_get("/healthz").unwrap().0, 200);
    manager.is_told_what_is_waited_for();

    lab.put_config(r#"{"Network": "172.30.0.0/16"}"#).unwrap();
    let mut said = manager.hears();
    while !said.contains("READY=1") {
        said = manager.hears();
    }
    let env = node.subnet_env().expect("READY=1 comes after subnet.env");
    assert!(said.contains("STATUS="), "{said}");
    assert_eq!(daemon.wait_ready(SOON).unwrap(), env);

    let mut last = None::<Instant>;
    for _ in 0..6 {
        let said = manager.hears();
        assert!(said.contains("WATCHDOG=1"), "{said}");
        let now = Instant::now();
        if let Some(gap) = last.map(|last| now - last) {
            assert!(
                (0.3..0.8).contains(&gap.as_secs_f64()),
                "half of a second: {gap:?}"
            );
        }
        last = Some(now);
    }
    assert!(daemon.stop().unwrap().success());
    let mut said = manager.hears();
    while said.contains("WATCHDOG=1") {
        said = manager.hears();
    }
    assert!(said.contains("STOPPING=1"), "{said}");
    assert!(
        node.picture().unwrap().has(&["link flannel.1 up"]),
        "the data path stays"
    );
}

#[test]
fn the_health_server_answers() {
    let lab = scene::lab().nodes(1).build().unwrap();
    lab.start().unwrap();
    let daemon = lab.node(1).flanneld();
    assert_eq!(
        daemon.http_get("/healthz").unwrap(),
        (200, "flanneld is running".into())
    );
    assert_eq!(daemon.http_get("/readyz").unwrap().0, 200);
    assert_eq!(daemon.http_get("/nothing").unwrap().0, 404);
    let (status, metrics) = daemon.http_get("/metrics").unwrap();
    assert_eq!(status, 200);
    for name in [
        "flannel_ready 1",
        "flannel_peers 0",
        "# TYPE flannel_kernel_repairs_total counter",
    ] {
        assert!(metrics.contains(name), "{metrics}");
    }
}

#[test]
fn a_health_port_in_use_is_named_after_a_moment() {
    let lab = scene::lab().nodes(1).build().unwrap();
    lab.start().unwrap();
    let node = lab.node(1);
    let second = node.another(Instance {
        name: "second".into(),
        subnet_file: "/run/second/subnet.env".into(),
        ..Instance::default()
    });
    second.start().unwrap();
    assert_eq!(second.wait_ended(SOON).unwrap().code(), Some(1));
    let log = second.log();
    assert!(
        log.contains("-healthz-port 10471: cannot listen there"),
        "{log}"
    );
    // A predecessor that ends meanwhile is waited for.
    second.start().unwrap();
    node.flanneld().stop().unwrap();
    second.wait_ready(SOON).unwrap();
}
