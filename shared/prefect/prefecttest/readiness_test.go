package prefecttest_test

import (
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/prefect/prefecttest"
)

// TestOneHeartbeatKeepsAPoolReady: Prefect takes a pool for served until three intervals of the
// last heartbeat have passed, and workers send one every 30 s. On a real server, and with
// PUSHPOOL_TEST_LONG=true, it waits longer than three of those.
func TestOneHeartbeatKeepsAPoolReady(t *testing.T) {
	url, wait := os.Getenv("PUSHPOOL_TEST_PREFECT"), 150*time.Second
	if url == "" || os.Getenv("PUSHPOOL_TEST_LONG") != "true" {
		s := prefecttest.New(prefecttest.Options{Scheduler: true})
		t.Cleanup(s.Close)
		url, wait = s.URL(), time.Second
	}
	client, err := prefect.New(prefect.Config{APIURL: url, HTTPClient: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}})
	if err != nil {
		t.Fatal(err)
	}
	template, err := client.WorkerMetadataTemplate(t.Context(), "cloud-run-v2")
	if err != nil {
		t.Fatal(err)
	}
	name := "ready " + uuid.NewString()
	if err := client.CreateWorkPool(t.Context(), name, "cloud-run-v2", template); err != nil {
		t.Fatal(err)
	}
	if err := client.Heartbeat(t.Context(), name, "pushpool", 24*time.Hour); err != nil {
		t.Fatal(err)
	}
	time.Sleep(wait) // the server's clock cannot be turned
	pool, err := client.WorkPool(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	if pool.Status != "READY" {
		t.Errorf("%s after its heartbeat the pool is %s", wait, pool.Status)
	}
}
