package wire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
)

// Refusal is an answer other than success: its status and, in words, why.
type Refusal struct {
	Status int    `json:"-"`
	Reason string `json:"reason"`
	// Have is what a machine that refuses a dictionary holds instead: hex digest of a slice.
	Have string `json:"have,omitempty"`
}

func (r *Refusal) Error() string {
	if r.Reason == "" {
		return fmt.Sprintf("peer answered %d %s", r.Status, http.StatusText(r.Status))
	}
	return fmt.Sprintf("peer refuses (%d): %s", r.Status, r.Reason)
}

// Validate cleans the reason, which came from outside.
func (r *Refusal) Validate() error {
	r.Reason = Clean(r.Reason)
	return name("have", r.Have)
}

// AsRefusal tells whether err is a Refusal with this status.
func AsRefusal(err error, status int) (*Refusal, bool) {
	var r *Refusal
	if errors.As(err, &r) && r.Status == status {
		return r, true
	}
	return nil, false
}

// Call makes one call and decodes the answer. In and out may be nil. An answer
// that is no success is a *Refusal.
func Call(ctx context.Context, client *http.Client, method, url string, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = Encode(in); err != nil {
			return err
		}
	}
	request, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("call %s: %w", url, err)
	}
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("call: %w", err)
	}
	return Answer(response, out)
}

// Answer reads and closes a response: into out, which may be nil, or as the
// *Refusal that it is.
func Answer(response *http.Response, out any) error {
	defer response.Body.Close()
	if response.StatusCode/100 == 2 {
		if out == nil || response.StatusCode == http.StatusNoContent {
			return nil
		}
		return Decode(response.Body, MaxStatus, out)
	}
	refusal := new(Refusal)
	if Decode(response.Body, MaxBytes, refusal) != nil {
		*refusal = Refusal{} // not our words: the status says enough
	}
	refusal.Status = response.StatusCode
	return refusal
}

// Write answers with a message; a nil one is answered without body.
func Write(w http.ResponseWriter, status int, message any) {
	if message == nil {
		w.WriteHeader(status)
		return
	}
	body, err := Encode(message)
	if err != nil { // a message of ours that JSON cannot say: a bug, shown to the caller
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	w.Write(body)
}

// Refuse answers with a reason.
func Refuse(w http.ResponseWriter, status int, reason string) {
	Write(w, status, &Refusal{Reason: Clean(reason)})
}

// Read decodes a request's body of an ordinary message and, on error, has
// answered: 413 or 400.
func Read(w http.ResponseWriter, r *http.Request, message any) error {
	err := Decode(r.Body, MaxBytes, message)
	switch {
	case err == nil:
	case errors.Is(err, ErrOversized):
		Refuse(w, http.StatusRequestEntityTooLarge, err.Error())
	default:
		Refuse(w, http.StatusBadRequest, err.Error())
	}
	return err
}
