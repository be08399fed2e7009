package cli

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/internal/durable"
)

func (e *env) schema() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:     "schema [NAME]",
		Short:   "print the JSON Schema of a document, for editors",
		GroupID: "fleet",
		Long: `Schema lists the JSON Schemas of the fleet repo's documents, prints one, or with --dir
writes all. Editors that know YAML complete and check with them: begin a document with
# yaml-language-server: $schema=PATH`,
		Example:           "  holdfast schema\n  holdfast schema site\n  holdfast schema --dir .schemas",
		Args:              args(cobra.MaximumNArgs(1)),
		ValidArgsFunction: cobra.FixedCompletions(schemaNames(), cobra.ShellCompDirectiveNoFileComp),
		RunE: func(_ *cobra.Command, a []string) error {
			if dir != "" {
				return e.writeSchemas(dir)
			}
			return e.printSchema(strings.Join(a, ""))
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "write all into this folder")
	return cmd
}

const schemaSuffix = ".schema.json"

func schemaNames() []string {
	var names []string
	for _, file := range slices.Sorted(maps.Keys(fleet.Schemas())) {
		names = append(names, strings.TrimSuffix(file, schemaSuffix))
	}
	return names
}

func (e *env) printSchema(name string) error {
	if name == "" {
		if e.output == "json" {
			return e.printJSON(schemaNames())
		}
		e.printf("%s\n", strings.Join(schemaNames(), "\n"))
		return nil
	}
	schema, ok := fleet.Schemas()[strings.TrimSuffix(name, schemaSuffix)+schemaSuffix]
	if !ok {
		return &Error{Err: fmt.Errorf("no schema %q", name), Hint: "there are: " + strings.Join(schemaNames(), " "), Code: CodeUsage}
	}
	_, err := e.out.Write(schema)
	return err
}

func (e *env) writeSchemas(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	all := fleet.Schemas()
	for _, file := range slices.Sorted(maps.Keys(all)) {
		if err := durable.WriteFile(filepath.Join(dir, file), all[file], 0o644); err != nil {
			return err
		}
		e.printf("%s\n", filepath.Join(dir, file))
	}
	return nil
}
