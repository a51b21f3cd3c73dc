package bench

import (
	"context"
	"time"

	"github.com/pushpool/pushpool/shared/prefect"
)

// dispatch takes flow runs one after the other and measures how long each part takes until
// Cloud Run has the job.
func dispatch(ctx context.Context, b *bench) error {
	s, err := b.start(ctx, nil)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := warm(ctx, b, s); err != nil {
		return err
	}
	return cold(ctx, b, s)
}

// shares are the parts of a dispatch.
type shares struct{ whole, prefect, topic, ours time.Duration }

// shares takes one flow run to its end and tells how long each part took.
func (s *stack) shares(ctx context.Context) (shares, error) {
	created := time.Now()
	fr, _, err := s.Prefect.CreateFlowRun(ctx, s.guide.ID, prefect.NewFlowRun{})
	if err != nil {
		return shares{}, err
	}
	if err := s.completed(ctx, fr.ID); err != nil {
		return shares{}, err
	}
	return s.parts(fr.ID, created, s.accepted()[fr.ID]), nil
}

// parts tells how long each part took of the dispatch of a flow run.
func (s *stack) parts(flowRunID string, created, accepted time.Time) shares {
	parts := shares{whole: accepted.Sub(created)}
	for _, l := range s.Functions.Lines(flowRunID) {
		began := l.Time.Add(-time.Duration(l.Took * float64(time.Second)))
		switch {
		case !began.Before(accepted):
		case l.Function == "webhook" && parts.prefect == 0:
			parts.prefect, parts.ours = began.Sub(created), accepted.Sub(began)
		case l.Function == "dispatcher" && parts.topic == 0:
			parts.topic = began.Sub(created)
		}
	}
	parts.topic -= parts.prefect
	return parts
}

// warm measures a set_state round trip beside each flow run, to compare with.
func warm(ctx context.Context, b *bench, s *stack) error {
	const warmUp, count = 3, 30
	var whole, prefects, topics, ours, trips []time.Duration
	for i := range warmUp + count {
		other, err := s.foreign(ctx)
		if err != nil {
			return err
		}
		parts, err := s.shares(ctx)
		if err != nil {
			return err
		}
		trip, err := s.roundTrip(ctx, other)
		if err != nil {
			return err
		}
		if i < warmUp {
			continue
		}
		whole, prefects, topics = append(whole, parts.whole), append(prefects, parts.prefect), append(topics, parts.topic)
		ours, trips = append(ours, parts.ours), append(trips, trip)
	}
	b.spread("flow run created → CreateJob accepted", whole)
	b.spread("of it Prefect: created → webhook called", prefects)
	b.spread("of it Pub/Sub: webhook called → dispatcher called", topics)
	median := b.spread("webhook called → CreateJob accepted", ours)
	trip := b.spread("one set_state round trip", trips)
	b.figure("webhook called → CreateJob accepted, in set_state round trips", "ratio", median.Seconds()/trip.Seconds())
	return nil
}

// cold measures the first flow run that a new process of the functions takes.
func cold(ctx context.Context, b *bench, s *stack) error {
	var ours []time.Duration
	for range 5 {
		s.Functions.Stop()
		if err := s.Functions.Start(ctx); err != nil {
			return err
		}
		parts, err := s.shares(ctx)
		if err != nil {
			return err
		}
		ours = append(ours, parts.ours)
	}
	b.spread("webhook called → CreateJob accepted, by a process that has just started", ours)
	return nil
}
