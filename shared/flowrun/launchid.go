package flowrun

import (
	"crypto/sha1" //nolint:gosec // UUIDv5 is defined over SHA-1 (RFC 9562, 5.5); nothing secret rests on it.
	"encoding/base32"
	"encoding/hex"
	"strings"
)

// LaunchID names one launch of a flow run. It is the transition_id of the PENDING state
// that claims the flow run, so Prefect itself says whose a flow run is, and the job's
// name follows from it.
type LaunchID string

// launchNamespace is the UUIDv5 namespace of launch ids. It must never change: flow runs
// in flight would stop being recognised.
var launchNamespace = [16]byte{0x9c, 0x1f, 0x2b, 0x56, 0x0c, 0x7d, 0x4b, 0x0e, 0x8f, 0x35, 0x6a, 0xd4, 0x1e, 0x7b, 0x90, 0x21}

// NewLaunchID returns the id of the launch that answers the SCHEDULED state with the given
// id. install is the installation's id, "PROJECT/NAME". Equal arguments give equal ids, so
// a redelivered message claims the same launch, and a retry of the flow run (a new
// SCHEDULED state) is a new one.
func NewLaunchID(install, flowRunID, scheduledStateID string) LaunchID {
	return LaunchID(uuid5(install, flowRunID, scheduledStateID))
}

// uuid5 returns the UUIDv5 of the parts.
func uuid5(parts ...string) string {
	h := sha1.New() //nolint:gosec // see the import
	h.Write(launchNamespace[:])
	h.Write([]byte(strings.Join(parts, "\x00")))
	u := h.Sum(nil)[:16]
	u[6] = u[6]&0x0f | 0x50
	u[8] = u[8]&0x3f | 0x80
	s := hex.EncodeToString(u)
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

// Suffix returns 13 base32 characters (a-z, 2-7) of the id: 65 bits, which tell the
// launches of one project and region apart in job ids. It is empty where the id is no UUID:
// one read from a label may be anything.
func (id LaunchID) Suffix() string {
	b, err := hex.DecodeString(strings.ReplaceAll(string(id), "-", ""))
	if err != nil || len(b) != 16 {
		return ""
	}
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b))[:13]
}
