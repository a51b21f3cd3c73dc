package cloudruntest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// hostnameVariable is different in each container, as in containers, and tells its processes
// from all others.
const hostnameVariable = "HOSTNAME"

func hostname(cmd *exec.Cmd) string {
	for _, v := range cmd.Env {
		if name, value, _ := strings.Cut(v, "="); name == hostnameVariable {
			return value
		}
	}
	return ""
}

// killContainer ends a container's processes: the group of the first one, and those that left
// the group, which on a machine without /proc are not found. They are stopped before any of
// them is killed: on Cloud Run they end together, and none sees another one die and tells.
func killContainer(pid int, host string) {
	signalContainer(pid, host, syscall.SIGSTOP)
	signalContainer(pid, host, syscall.SIGKILL)
}

func signalContainer(pid int, host string, signal syscall.Signal) {
	_ = syscall.Kill(-pid, signal) // gone is fine
	marker := []byte(hostnameVariable + "=" + host + "\x00")
	had := map[string]bool{}
	for more := host != ""; more; { // again, for what they forked meanwhile
		more = false
		environs, _ := filepath.Glob("/proc/[0-9]*/environ")
		for _, file := range environs {
			environ, err := os.ReadFile(file)
			if err != nil || had[file] || !bytes.Contains(environ, marker) {
				continue
			}
			had[file] = true
			if other, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil {
				more = syscall.Kill(other, signal) == nil || more
			}
		}
	}
}
