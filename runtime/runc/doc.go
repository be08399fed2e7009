// Package runc pins runc, which starts every container of a machine. It is
// built unmodified, static, with seccomp (the pod sandbox always carries a
// profile, so a build without it starts nothing).
//
// It is a module of its own and holds no code: build/system.mk builds the
// imported command by path. It is the one program here that needs a C compiler
// and libseccomp's headers.
package runc
