package machine

import "testing"

func TestShortageTellsSteps(t *testing.T) {
	before := 0
	for i, c := range []struct {
		free float64
		want int
	}{{50, 0}, {10.1, 0}, {9.9, 10}, {10.5, 10}, {11.9, 10}, {12, 0}, {11, 0}, {4, 5}, {6.9, 5}, {7.5, 10}, {1.9, 2}, {3.9, 2}, {4.1, 5}, {90, 0}} {
		got, err := shortage(c.free, before)
		if got != c.want || (err != nil) != (c.want != 0) {
			t.Errorf("look %d: with %v %% free after step %d: step %d, %v; want %d", i, c.free, before, got, err, c.want)
		}
		before = got
	}
}

func TestFreeShareOfADisk(t *testing.T) {
	if free, err := freeShare(t.TempDir()); err != nil || free < 0 || free > 100 {
		t.Errorf("a folder has %v %% free, %v", free, err)
	}
	if _, err := freeShare("/not/there"); err == nil {
		t.Error("a disk that is not there gives no error")
	}
}
