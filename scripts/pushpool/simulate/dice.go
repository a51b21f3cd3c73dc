package simulate

import (
	"encoding/binary"
	"io"
	"math/rand/v2"
	"sync"
	"time"
)

// dice is chance by name: what a name gives does not depend on what was asked before.
type dice struct{ seed uint64 }

// of returns the chance of a name.
func (d dice) of(name string) *rand.Rand {
	const offset, prime = 14695981039346656037, 1099511628211 // FNV-1a
	h := uint64(offset)
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * prime
	}
	return rand.New(rand.NewPCG(d.seed, h)) //nolint:gosec // a simulation has to repeat
}

// between draws a duration of at least from and less than to.
func between(r *rand.Rand, from, to time.Duration) time.Duration {
	return from + time.Duration(r.Int64N(int64(to-from)))
}

// stream is a source of random bytes for packages that draw ids from one. Each step of the loop
// begins a new part of it, so that what is drawn depends on little that went before.
type stream struct {
	mu   sync.Mutex
	seed uint64
	r    *rand.PCG
}

func newStream(seed uint64) *stream { return &stream{seed: seed, r: rand.NewPCG(seed, 0)} }

func (s *stream) begin(step int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.r.Seed(s.seed, uint64(step))
}

func (s *stream) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := 0; i < len(p); i += 8 {
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], s.r.Uint64())
		copy(p[i:], b[:])
	}
	return len(p), nil
}

var _ io.Reader = (*stream)(nil)
