package render

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
)

// A value is what JSON can say: map[string]any, []any, string, json.Number,
// bool or nil. Numbers keep their spelling, so that no digit is lost.

// canonical is the one spelling of a value: sorted keys, no insignificant
// space, no escapes beyond those that JSON demands.
func canonical(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// mustCanonical is for values that this package made itself.
func mustCanonical(v any) []byte {
	b, err := canonical(v)
	if err != nil {
		panic(fmt.Sprintf("render: a value of our own does not encode: %v", err))
	}
	return b
}

// decodeJSON reads exactly one JSON value.
func decodeJSON(data []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("more than one JSON value")
	}
	return v, nil
}

// clone copies a value deeply.
func clone(v any) any {
	switch v := v.(type) {
	case map[string]any:
		c := make(map[string]any, len(v))
		for k, e := range v {
			c[k] = clone(e)
		}
		return c
	case []any:
		c := make([]any, len(v))
		for i, e := range v {
			c[i] = clone(e)
		}
		return c
	}
	return v
}

// at follows keys through nested maps; nil when the way ends.
func at(v any, keys ...string) any {
	for _, k := range keys {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[k]
	}
	return v
}

// mapAt is at, making the maps that are missing.
func mapAt(m map[string]any, keys ...string) map[string]any {
	for _, k := range keys {
		next, ok := m[k].(map[string]any)
		if !ok {
			next = map[string]any{}
			m[k] = next
		}
		m = next
	}
	return m
}

func stringAt(v any, keys ...string) string {
	s, _ := at(v, keys...).(string)
	return s
}
