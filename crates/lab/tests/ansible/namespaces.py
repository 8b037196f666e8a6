"""Ansible's way into a machine of the lab: the namespaces of a process that runs there."""

DOCUMENTATION = """
name: namespaces
short_description: run commands in the namespaces of a process
description: For the lab's machines, which have no network to the control machine.
author: the flannel-rs authors
options:
  process:
    description: Id of the process.
    vars: [{name: ansible_process}]
    required: true
  kinds:
    description: Which of its namespaces to enter, as options of nsenter.
    vars: [{name: ansible_namespaces}]
    default: --mount --net --pid --uts --ipc --cgroup
"""

import subprocess

from ansible.errors import AnsibleError
from ansible.plugins.connection import ConnectionBase


class Connection(ConnectionBase):
    """Entered anew for each command; there is nothing to keep open."""

    transport = "namespaces"
    has_pipelining = True

    def _connect(self):
        self._connected = True
        return self

    def close(self):
        self._connected = False

    def _run(self, argv, stdin):
        enter = ["nsenter", "--target", str(self.get_option("process")), *self.get_option("kinds").split()]
        # The machine's own environment, not the control machine's.
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        done = subprocess.run(
            [*enter, "env", "-i", path, "HOME=/root", "LANG=C.UTF-8", *argv], input=stdin or b"", capture_output=True, check=False
        )
        return done.returncode, done.stdout, done.stderr

    def exec_command(self, cmd, in_data=None, sudoable=True):
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        return self._run(["/bin/sh", "-c", cmd], in_data)

    def put_file(self, in_path, out_path):
        super().put_file(in_path, out_path)
        with open(in_path, "rb") as file:
            self._checked(["dd", "bs=1M", "status=none", "of=" + out_path], file.read())

    def fetch_file(self, in_path, out_path):
        super().fetch_file(in_path, out_path)
        text = self._checked(["cat", in_path], None)
        with open(out_path, "wb") as file:
            file.write(text)

    def _checked(self, argv, stdin):
        status, out, err = self._run(argv, stdin)
        if status != 0:
            raise AnsibleError(f"{argv}: {err.decode(errors='replace')}")
        return out
