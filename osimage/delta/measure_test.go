//go:build measure

package delta

import (
	"bytes"
	"os"
	"testing"
	"time"
)

// TestMeasure makes, applies and measures the delta between two files:
// HOLDFAST_DELTA_OLD=A HOLDFAST_DELTA_NEW=B go test -tags measure -v -run Measure .
func TestMeasure(t *testing.T) {
	oldFile, newFile := os.Getenv("HOLDFAST_DELTA_OLD"), os.Getenv("HOLDFAST_DELTA_NEW")
	if oldFile == "" || newFile == "" {
		t.Fatal("HOLDFAST_DELTA_OLD and HOLDFAST_DELTA_NEW name no files")
	}
	was, err := os.ReadFile(oldFile)
	if err != nil {
		t.Fatal(err)
	}
	is, err := os.ReadFile(newFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, chunk := range []int{DefaultChunk} {
		began := time.Now()
		var whole, d bytes.Buffer
		if _, err := Make(t.Context(), &whole, Image{}, image(is), Options{Chunk: chunk}); err != nil {
			t.Fatal(err)
		}
		wholeTime := time.Since(began)
		began = time.Now()
		stats, err := Make(t.Context(), &d, image(was), image(is), Options{Chunk: chunk})
		if err != nil {
			t.Fatal(err)
		}
		made := time.Since(began)
		began = time.Now()
		got := apply(t, d.Bytes(), was)
		if !bytes.Equal(got, is) {
			t.Fatal("another image came out")
		}
		t.Logf("chunks of %d KiB: %d bytes, whole %d (%s), delta %d (%.2f %% of the whole), %d steps, made in %s, applied in %s", chunk>>10, len(is), whole.Len(),
			wholeTime.Round(time.Millisecond), d.Len(), 100*float64(d.Len())/float64(whole.Len()), stats.Steps, made.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
	}
}
