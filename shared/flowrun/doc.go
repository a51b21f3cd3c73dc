// Package flowrun is the domain: what is known of a flow run's launches, which events change
// it, and what follows. It is pure: values and the time in, values out.
//
// Three records tell about a flow run, each the truth of one thing. Prefect: its state.
// Cloud Run: what is executing. The ledger (Record): which launch ties one to the other.
// Apply is the only way a Record changes; the order of rules in it is the design's table.
package flowrun
