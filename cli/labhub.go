package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
)

// labPointer is where a lab notes, in the clone that it was made from, that it runs.
func labPointer(gitDir string) string { return filepath.Join(gitDir, "holdfast", "lab.json") }

// labNote is the content of labPointer.
type labNote struct {
	Dir string `json:"dir"`
	Hub string `json:"hub"` // host:port
}

// labHub is the address of the lab's hub, if a lab runs for this clone.
func labHub(gitDir string) (string, bool) {
	n, ok := readLabNote(gitDir)
	return n.Hub, ok && n.Hub != ""
}

func readLabNote(gitDir string) (labNote, bool) {
	var n labNote
	b, err := os.ReadFile(labPointer(gitDir))
	if err != nil || json.Unmarshal(b, &n) != nil {
		return labNote{}, false
	}
	return n, true
}
