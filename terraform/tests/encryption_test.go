package terraform_test

import (
	"encoding/json"
	"strings"
	"testing"
)

// With kms_key nothing that stores something is left to Google's own keys.
func TestTheKeyEncryptsAllThatIsStored(t *testing.T) {
	const key = `"projects/my-project/locations/europe-west1/keyRings/ring/cryptoKeys/key"`
	attribute := map[string]string{
		"google_artifact_registry_repository": "kms_key_name",
		"google_cloudfunctions2_function":     "kms_key_name",
		"google_firestore_database":           "cmek_config",
		"google_pubsub_topic":                 "kms_key_name",
		"google_secret_manager_secret":        "replication",
		"google_storage_bucket":               "encryption",
	}
	seen := map[string]bool{}
	for _, r := range applied(t, installation).resources {
		name := attribute[r.Type]
		if name == "" {
			continue
		}
		seen[r.Type] = true
		value, err := json.Marshal(r.Values[name])
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(value), key) {
			t.Errorf("%s: %s is %s", r.Address, name, value)
		}
	}
	if len(seen) != len(attribute) {
		t.Errorf("only %v were applied", seen)
	}
}
