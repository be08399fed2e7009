package link

import (
	"math/rand/v2"
	"time"
)

// backoff is full jitter: each wait is drawn evenly between nothing and a
// ceiling that doubles. So ten thousand machines whose hub restarted come back
// spread over the ceiling and not in waves.
type backoff struct {
	least, most time.Duration
	failures    int
	draw        func(n int64) int64 // nil: math/rand
}

func (b *backoff) next() time.Duration {
	ceiling := b.most
	if b.failures < 30 {
		ceiling = min(b.most, b.least<<b.failures)
	}
	b.failures++
	draw := b.draw
	if draw == nil {
		draw = rand.Int64N
	}
	return time.Duration(draw(int64(ceiling) + 1))
}

func (b *backoff) reset() { b.failures = 0 }
