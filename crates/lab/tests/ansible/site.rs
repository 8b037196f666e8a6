//! Two machines, an etcd, and the inventory of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use lab::{Etcd, Lab, Machine, Namespace, Process, StoreKind, wait_for};
use serde_json::{Value, json};

use crate::SOON;
use crate::control::{CHECKOUT, Control};

/// The site.
pub(crate) struct Site {
    // Dropped in this order.
    doors: BTreeMap<String, Process>,
    pub(crate) machines: Vec<Machine>,
    pub(crate) lab: Lab,
    control: Control,
    host_vars: BTreeMap<String, Value>,
}

/// What a play said, and how it ended.
pub(crate) struct Play {
    pub(crate) succeeded: bool,
    pub(crate) output: String,
}

impl Site {
    /// As the guide's other roles leave it: etcd runs, certificates are made, CNI plugins are there. n1
    /// is to get programs from a directory, and n2, which has another flannel, a package.
    pub(crate) fn build() -> Site {
        let control = Control::new();
        let lab = Lab::builder()
            .nodes(2)
            .store(StoreKind::Etcd { tls: true })
            .etcd_prefix("/kubernetes-cluster/network")
            .build()
            .unwrap();
        lab.delete_config().unwrap();
        let machines: Vec<Machine> = lab
            .nodes()
            .iter()
            .map(|node| Machine::boot(node).unwrap())
            .collect();
        let cnitool = control.tool("cnitool");
        for machine in &machines {
            for plugin in ["bridge", "host-local", "portmap"] {
                machine
                    .copy_in(
                        &Path::new("/usr/lib/cni").join(plugin),
                        &format!("/opt/cni/bin/{plugin}"),
                    )
                    .unwrap();
            }
            machine
                .copy_in(Path::new("/usr/sbin/ethtool"), "/usr/sbin/ethtool")
                .unwrap();
            machine.copy_in(&cnitool, "/usr/local/bin/cnitool").unwrap();
        }
        another_flannel(&machines[1]);
        control.certificates(&lab.shared_dir().join("tls"));
        control.programs();
        control.package();
        let package = control.path("flannel.deb");
        let host_vars = [(
            "n2",
            json!({"flannel_binary_source": "", "flannel_package": package}),
        )];

        let mut doors = BTreeMap::new();
        let log = |name: &str| lab.shared_dir().join("log").join(format!("{name}-door"));
        for machine in &machines {
            let name = machine.name();
            doors.insert(name.to_owned(), door(machine, &log(name)));
        }
        doors.insert(
            "etcd1".to_owned(),
            door_with_sys(lab.fabric(), &log("etcd1")),
        );
        Site {
            doors,
            machines,
            lab,
            control,
            host_vars: host_vars.map(|(host, vars)| (host.to_owned(), vars)).into(),
        }
    }

    pub(crate) fn etcd(&self) -> &Etcd {
        self.lab.etcd().unwrap()
    }

    /// Sets variables of one host, beside those it has.
    pub(crate) fn set(&mut self, host: &str, vars: Value) {
        let (Value::Object(new), old) = (vars, self.host_vars.entry(host.into())) else {
            panic!("variables are a mapping")
        };
        let all = old.or_insert_with(|| json!({}));
        all.as_object_mut().unwrap().extend(new);
    }

    /// Runs the example's playbook.
    pub(crate) fn play(&self, args: &[&str]) -> Play {
        let inventory = self.control.dir.join("inventory.json");
        fs::write(&inventory, self.inventory().to_string()).unwrap();
        let mut command = self.control.ansible("ansible-playbook");
        command
            .arg("--inventory")
            .arg(&inventory)
            .args(["--extra-vars", "flannel_serial=100%"])
            .args(args);
        let output = command
            .arg(format!("{CHECKOUT}/deploy/ansible/site.yml"))
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        println!("{args:?}\n{text}");
        Play {
            succeeded: output.status.success(),
            output: text,
        }
    }

    /// From within each pod, the other one answers.
    pub(crate) fn pods_reach_each_other(&self, addresses: &[String]) {
        for (machine, other) in self.machines.iter().zip(addresses.iter().rev()) {
            let ping = [
                "ip", "netns", "exec", "pod", "ping", "-c", "2", "-W", "5", other,
            ];
            machine.exec(ping).unwrap();
        }
    }

    fn inventory(&self) -> Value {
        let host = |name: &str| {
            let mut vars = json!({"ansible_process": self.doors[name].pid()});
            if let Some(Value::Object(more)) = self.host_vars.get(name) {
                vars.as_object_mut().unwrap().extend(more.clone());
            }
            vars
        };
        let dir = self.control.dir.display();
        json!({"all": {
            "vars": {
                "ansible_connection": "namespaces",
                "ansible_user": "root",
                "ansible_python_interpreter": "/usr/bin/python3",
                "k8s_interface": "eth0",
                "k8s_ca_conf_directory": format!("{dir}/certs"),
                "flannel_binary_source": format!("{dir}/programs"),
            },
            "children": {
                // An etcd node that runs no flanneld, on an interface of another name.
                "k8s_etcd": {"hosts": {"etcd1": host("etcd1")}, "vars": {
                    "k8s_interface": "br0",
                    "ansible_namespaces": "--mount --net",
                    "ansible_python_interpreter": self.control.bin.join("python3"),
                }},
                "flannel": {"hosts": {"n1": host("n1"), "n2": host("n2")}},
            },
        }})
    }
}

/// What the guide's own role has left: another daemon that runs, its unit and its plugin.
fn another_flannel(machine: &Machine) {
    let script =
        "#!/bin/sh\n[ \"$1\" = run ] && exec sleep infinity\necho another flannel\nexit 1\n";
    let unit = "[Service]\nExecStart=/usr/local/sbin/flanneld run\n[Install]\nWantedBy=multi-user.target\n";
    machine
        .write("/etc/systemd/system/flanneld.service", unit)
        .unwrap();
    for path in ["/usr/local/sbin/flanneld", "/opt/cni/bin/flannel"] {
        machine.write(path, script).unwrap();
        machine.exec(["chmod", "755", path]).unwrap();
    }
    machine
        .exec(["systemctl", "enable", "--now", "flanneld"])
        .unwrap();
}

/// A process by which Ansible gets into a machine.
fn door(machine: &Namespace, log: &Path) -> Process {
    let mut sleep = Command::new("sleep");
    Process::start("door", machine, sleep.arg("infinity"), log).unwrap()
}

/// The same for a place that is no machine: its interfaces must be in `/sys`.
fn door_with_sys(place: &Namespace, log: &Path) -> Process {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "slave", "sh", "-c"]);
    command.arg("mount -t sysfs sysfs /sys && exec sleep infinity");
    let door = Process::start("door", place, &mut command, log).unwrap();
    wait_for("the door is open", SOON, || {
        let name = fs::read_to_string(format!("/proc/{}/comm", door.pid())).unwrap_or_default();
        match name.trim() {
            "sleep" => Ok(()),
            _ => Err(fs::read_to_string(log).unwrap_or_default()),
        }
    })
    .unwrap();
    door
}

impl Play {
    /// How many tasks changed something on n1 and on n2, as the recap has it.
    pub(crate) fn changed(&self) -> [u32; 2] {
        ["n1", "n2"].map(|host| {
            let recap = self
                .output
                .lines()
                .find(|l| l.starts_with(&format!("{host} ")) && l.contains("changed="));
            let count =
                recap.and_then(|l| l.split("changed=").nth(1)?.split(' ').next()?.parse().ok());
            count.unwrap_or_else(|| panic!("no recap of {host} in\n{}", self.output))
        })
    }
}
