package cli

import "github.com/spf13/cobra"

// verbs lists every verb, in the order of the help.
func (e *env) verbs() []*cobra.Command {
	return []*cobra.Command{
		e.initVerb(), e.check(), e.render(), e.explain(), e.diff(), e.lock(), e.schema(),
		e.release(), e.verify(), e.images(), e.osVerb(),
		e.adopt(), e.seed(), e.status(), e.kubeconfig(), e.kubectl(), e.machineVerb(),
		e.hubVerb(), e.lab(), e.drill(), e.version(),
	}
}
