package local

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"time"
)

// LoseLedger deletes the ledger while everything goes on, and says how. In memory it goes with
// the functions' process, which is killed and started anew.
func (s *Stack) LoseLedger(ctx context.Context) (how string, err error) {
	host := os.Getenv("FIRESTORE_EMULATOR_HOST")
	if host == "" {
		s.Functions.Kill()
		return "the functions were killed, and the ledger in their memory with them", s.Functions.Start(ctx)
	}
	url := fmt.Sprintf("http://%s/emulator/v1/projects/%s/databases/(default)/documents", host, s.Project)
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodDelete, url, nil) //nolint:gosec // the emulator that the environment names
		if err != nil {
			return "", err
		}
		resp, err := http.DefaultClient.Do(req) //nolint:gosec // likewise
		if err != nil {
			return "", fmt.Errorf("delete the ledger: %w", err)
		}
		_ = resp.Body.Close()
		switch resp.StatusCode {
		case http.StatusOK:
			return "every document of the ledger was deleted", nil
		case http.StatusConflict: // with a transaction: between two it succeeds
			time.Sleep(10 * time.Millisecond)
		default:
			return "", fmt.Errorf("delete the ledger: DELETE %s: %s", url, resp.Status)
		}
	}
}
