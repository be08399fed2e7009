// Package preflight tells what a computer lacks to run hosted machines, how many fit, and what to do about it.
//
// It looks and tries, in temporary namespaces that end with the check; it changes nothing: no module is loaded (a feature whose module is there but not
// loaded is taken as good and not tried), no setting is written. It works without root and says what it then cannot know. On systems other than
// Linux the report says that hosted machines need Linux.
package preflight
