package main

import (
	"os"

	"k8s.io/component-base/cli"
	kubectlcmd "k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"
)

// kubectl is upstream's main: it prints its own errors and ends the process with
// its own exit codes (diff's 1 for "differs", a plugin's, an exec's).
func kubectl(args []string) int {
	os.Args = append([]string{"kubectl"}, args[1:]...)
	if err := cli.RunNoErrOutput(kubectlcmd.NewDefaultKubectlCommand()); err != nil {
		util.CheckErr(err)
		return 1
	}
	return 0
}
