package deliverytest

import (
	"net/http/httptest"
	"os"
	"time"
)

// Endless is a connection, response and request body in one, whose body does not end by itself: without
// a deadline whoever reads it waits for ever.
type Endless struct {
	*httptest.ResponseRecorder
	// Deadline is when reading is given up; zero: never.
	Deadline time.Time
}

// SetReadDeadline is what http.ResponseController asks of a connection.
func (e *Endless) SetReadDeadline(at time.Time) error {
	e.Deadline = at
	return nil
}

// Read implements io.Reader.
func (e *Endless) Read([]byte) (int, error) {
	if e.Deadline.IsZero() {
		return 0, nil // and again
	}
	return 0, os.ErrDeadlineExceeded
}
