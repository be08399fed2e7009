package store

import (
	"fmt"
	"io"
	"strings"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Exit codes of a process whose etcd cannot go on. 65 and 76 are EX_DATAERR and
// EX_PROTOCOL of sysexits.h.
const (
	ExitFailed  = 1  // anything that a restart may mend
	ExitDamaged = 65 // the data directory is damaged: rejoin empty, or restore
	ExitNewer   = 76 // a newer etcd wrote it: only that program can open it
)

// newer and damaged are what etcd 3.6 and bbolt say, in the words of their
// sources, when the data directory itself is at fault. What is in neither list
// counts as mendable: putting a directory aside that a restart would have opened
// loses data, trying once more does not.
var (
	newer = []string{
		"invalid downgrade; server version is lower than determined cluster version",
		`" is not supported`, // version "3.7.0" is not supported
		"wal contains newer entries",
	}
	damaged = []string{
		// write-ahead log
		"crc mismatch",
		"wal: slice bounds out of range",
		"wal: max entry size limit exceeded",
		"wal: file not found",
		"wal: conflicting metadata found",
		"wal: snapshot not found",
		"wal: snapshot mismatch",
		"which matches the snapshot index",
		"do not increase continuously",
		"unexpected block type",
		"cannot be repaired",
		"unexpected eof",
		// snapshots
		"snap: empty snapshot",
		"failed to find database snapshot file",
		"snapshot file doesn't exist",
		// database
		"invalid database",
		"checksum error",
		"version mismatch",
		"file size too small",
		"invalid freelist",
		"unexpected page type",
		"invalid page type",
		"page already freed",
		"assertion failed",
		"failed to restore from head bucket",
		"is older than snapshot index",
		"failed to unmarshal",
		"failed to recover v3 backend from snapshot",
		"illegal v2store content",
		"corrupt",
	}
	// notDamage is believed first: these are faults of the machine, not of the
	// data, whatever else the text says.
	notDamage = []string{
		"no space left on device",
		"permission denied",
		"too many open files",
		"cannot allocate memory",
		"read-only file system",
		"address already in use",
		"cannot assign requested address",
		"context canceled",
	}
)

// verdict tells by etcd's words which exit code fits.
func verdict(text string) int {
	text = strings.ToLower(text)
	switch {
	case containsAny(text, notDamage):
		return ExitFailed
	case containsAny(text, newer):
		return ExitNewer
	case containsAny(text, damaged):
		return ExitDamaged
	}
	return ExitFailed
}

func containsAny(text string, words []string) bool {
	for _, w := range words {
		if strings.Contains(text, w) {
			return true
		}
	}
	return false
}

// failure ends the process when etcd says that it cannot go on.
type failure struct{ exit func(int) }

func (f failure) judge(text string) { f.exit(verdict(text)) }

// fatalHook is what zap calls after a Fatal entry was written. The entry's
// fields carry the cause, its message only the place.
type fatalHook struct{ failure }

func (h fatalHook) OnWrite(e *zapcore.CheckedEntry, fields []zapcore.Field) {
	h.judge(describe(e.Message, fields))
	// Not reached with os.Exit. A test's exit returns, and etcd must not go on.
	panic(errStopped{e.Message})
}

// panicHook keeps etcd's panics panics, but ends the process with the right code
// where the data is at fault: most happen on goroutines that nobody recovers.
type panicHook struct{ failure }

func (h panicHook) OnWrite(e *zapcore.CheckedEntry, fields []zapcore.Field) {
	text := describe(e.Message, fields)
	if verdict(text) != ExitFailed {
		h.judge(text)
	}
	panic(errStopped{text})
}

type errStopped struct{ text string }

func (e errStopped) Error() string { return "etcd stopped: " + e.text }

func describe(message string, fields []zapcore.Field) string {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(enc)
	}
	var b strings.Builder
	b.WriteString(message)
	for k, v := range enc.Fields {
		fmt.Fprintf(&b, " %s=%v", k, v)
	}
	return b.String()
}

// logger writes errors only: etcd warns of every request that a slow disk
// delays, which costs that disk even more.
func logger(w io.Writer, f failure) *zap.Logger {
	ec := zap.NewProductionEncoderConfig()
	ec.EncodeTime = zapcore.ISO8601TimeEncoder
	core := zapcore.NewCore(zapcore.NewConsoleEncoder(ec), zapcore.AddSync(w), zap.ErrorLevel)
	return zap.New(core, zap.WithFatalHook(fatalHook{f}), zap.WithPanicHook(panicHook{f})).Named("etcd")
}
