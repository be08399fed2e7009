package drill

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// counter is a number in the site's etcd that is counted up: what was
// acknowledged must be there after whatever happens.
type counter struct {
	site Site
	now  func() time.Time // by which the site's certificates are judged

	mu    sync.Mutex // guards what follows
	api   *API
	acked uint64
	tried uint64
	date  time.Time // of the machine, at its last answer
}

const (
	counterName = "holdfast-drill"
	counterPath = "/api/v1/namespaces/default/configmaps"
)

type configMap struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Metadata   metadata          `json:"metadata"`
	Data       map[string]string `json:"data"`
}

type metadata struct {
	Name            string `json:"name"`
	ResourceVersion string `json:"resourceVersion,omitempty"`
}

// call asks the API server.
func (c *counter) call(ctx context.Context, method, path string, in, out any) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	c.mu.Lock()
	api := c.api
	c.mu.Unlock()
	if api == nil {
		fresh, err := c.site.API(ctx, c.now)
		if err != nil {
			return 0, err
		}
		c.mu.Lock()
		c.api, api = fresh, fresh
		c.mu.Unlock()
	}
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return 0, err
		}
		body = bytes.NewReader(b)
	}
	request, err := http.NewRequestWithContext(ctx, method, api.URL+path, body)
	if err != nil {
		return 0, err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := api.HTTP.Do(request)
	if err != nil {
		c.again()
		return 0, err
	}
	defer response.Body.Close()
	if date, err := http.ParseTime(response.Header.Get("Date")); err == nil {
		c.mu.Lock()
		c.date = date
		c.mu.Unlock()
	}
	text, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return 0, err
	}
	if response.StatusCode/100 != 2 {
		if response.StatusCode == http.StatusUnauthorized || response.StatusCode == http.StatusForbidden {
			c.again()
		}
		return response.StatusCode, fmt.Errorf("%s %s: %s: %.300s", method, path, response.Status, text)
	}
	if out != nil {
		err = json.Unmarshal(text, out)
	}
	return response.StatusCode, err
}

// again gets a new credential the next time.
func (c *counter) again() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.api != nil {
		c.api.HTTP.CloseIdleConnections()
	}
	c.api = nil
}

// read is the counter as it is.
func (c *counter) read(ctx context.Context) (configMap, uint64, error) {
	var m configMap
	status, err := c.call(ctx, http.MethodGet, counterPath+"/"+counterName, nil, &m)
	if err != nil {
		if status == http.StatusNotFound {
			err = fmt.Errorf("%w: %w", errNoCounter, err)
		}
		return m, 0, err
	}
	n, err := strconv.ParseUint(m.Data["n"], 10, 64)
	return m, n, err
}

var errNoCounter = errors.New("the counter is not there")

// open makes the counter, or goes on with the one that is there.
func (c *counter) open(ctx context.Context) error {
	_, n, err := c.read(ctx)
	if errors.Is(err, errNoCounter) {
		_, err = c.call(ctx, http.MethodPost, counterPath, configMap{"v1", "ConfigMap", metadata{Name: counterName}, map[string]string{"n": "0"}}, nil)
	}
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.acked, c.tried = n, n
	return nil
}

// count counts up until ctx ends, or for n times where n is not 0. A write that
// fails is tried again.
func (c *counter) count(ctx context.Context, n int) (acknowledged int) {
	for ctx.Err() == nil && (n == 0 || acknowledged < n) {
		if err := c.up(ctx); err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond):
			}
			continue
		}
		acknowledged++
	}
	return acknowledged
}

func (c *counter) up(ctx context.Context) error {
	m, n, err := c.read(ctx)
	if err != nil {
		return err
	}
	m.APIVersion, m.Kind, m.Data = "v1", "ConfigMap", map[string]string{"n": strconv.FormatUint(n+1, 10)}
	c.mu.Lock()
	c.tried = max(c.tried, n+1)
	c.mu.Unlock()
	if _, err := c.call(ctx, http.MethodPut, counterPath+"/"+counterName, m, nil); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.acked = max(c.acked, n+1)
	return nil
}

// check says whether all that was acknowledged is there.
func (c *counter) check(ctx context.Context) error {
	_, n, err := c.read(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case errors.Is(err, errNoCounter):
		return broken("%d acknowledged writes of etcd are lost: %v", c.acked, err)
	case err != nil:
		return err
	case n < c.acked:
		return broken("%d acknowledged writes of etcd are lost: it says %d, and acknowledged %d", c.acked-n, n, c.acked)
	case n > c.tried:
		return broken("etcd says %d, and only %d was ever written", n, c.tried)
	}
	return nil
}

// state is what was acknowledged, and the machine's time when it last answered.
func (c *counter) state() (acked uint64, date time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.acked, c.date
}
