package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"cloud.google.com/go/firestore"
	"google.golang.org/api/iterator"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// LoseLedger deletes the ledger while everything goes on, and says how. In memory it goes with
// the functions' process, which is killed and started anew. In Firestore it goes document by
// document: the emulator's own call for all of them can wait for ever on transactions.
func (s *Stack) LoseLedger(ctx context.Context) (how string, err error) {
	if os.Getenv("FIRESTORE_EMULATOR_HOST") == "" {
		s.Functions.Kill()
		return "the functions were killed, and the ledger in their memory with them", s.Functions.Start(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	client, err := firestore.NewClient(ctx, s.Project)
	if err != nil {
		return "", fmt.Errorf("delete the ledger: %w", err)
	}
	defer func() { _ = client.Close() }()
	n := 0
	for collections := client.Collections(ctx); ; {
		c, err := collections.Next()
		if errors.Is(err, iterator.Done) {
			return fmt.Sprintf("every document of the ledger was deleted, %d of them", n), nil
		}
		if err != nil {
			return "", fmt.Errorf("delete the ledger: %w", err)
		}
		documents, err := c.DocumentRefs(ctx).GetAll()
		if err != nil {
			return "", fmt.Errorf("delete the ledger: list %s: %w", c.ID, err)
		}
		for _, d := range documents {
			_, err := d.Delete(ctx)
			for status.Code(err) == codes.Aborted { // by a transaction: between two it succeeds
				_, err = d.Delete(ctx)
			}
			if err != nil {
				return "", fmt.Errorf("delete the ledger: %s: %w", d.Path, err)
			}
			n++
		}
	}
}
