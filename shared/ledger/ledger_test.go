package ledger_test

import (
	"cmp"
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"cloud.google.com/go/firestore"

	"github.com/pushpool/pushpool/shared/ledger"
	"github.com/pushpool/pushpool/shared/ledger/ledgertest"
)

func TestMemory(t *testing.T) {
	ledgertest.Run(t, func(*testing.T) ledger.Ledger { return ledger.NewMemory() })
}

// emulator is the variable that the Firestore client reads.
const emulator = "FIRESTORE_EMULATOR_HOST"

func TestFirestore(t *testing.T) {
	addr := cmp.Or(os.Getenv("PUSHPOOL_TEST_FIRESTORE"), os.Getenv(emulator))
	if addr == "" {
		const hint = "set PUSHPOOL_TEST_FIRESTORE to host:port of `gcloud emulators firestore start`"
		if os.Getenv("CI") == "true" {
			t.Fatal(hint)
		}
		t.Skip(hint)
	}
	t.Setenv(emulator, addr)
	var projects atomic.Int64
	ledgertest.Run(t, func(t *testing.T) ledger.Ledger {
		// A project of its own is an empty database: the emulator makes it when it is named.
		project := fmt.Sprintf("test-%d-%d", time.Now().UnixNano(), projects.Add(1))
		client, err := firestore.NewClient(t.Context(), project)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := client.Close(); err != nil {
				t.Error(err)
			}
		})
		return ledger.NewFirestore(client)
	})
}
