// Package apps brings what a release renders into a site's Kubernetes, and tells how it does there.
//
// [Engine.Apply] takes the whole plan of a release: it applies each app's objects server-side, in the order of their kinds and of the apps' needs,
// and afterwards removes what no app wants any more, within the rule on data. [Engine.Watch] and [Engine.Status] judge by kstatus, with the cases
// in which kstatus is wrong mended ([Judge]). The caller decides what follows from a verdict.
//
// It promises:
//
//   - Applying the same plan again writes nothing. An object is written only when its content changed since it was applied or when it is not there
//     (annotation [AnnotationDigest]); what others change in between stays, unless the plan says Repair.
//   - Nothing that may hold data goes because it is absent from a plan: claims, volumes, CRDs, namespaces with claims or with objects of others, Jobs that ran,
//     what claims hang on, and whole apps with claims are orphaned and reported, each time. Only a Delete entry removes them, once.
//   - An object that somebody else made is not taken over by force: its conflict is reported. Nor is one deleted that was there before us.
//   - A Job runs once per content, whatever happens to the Job object later.
//   - A crash at any instant loses nothing but the work in progress: the inventory is written before the first object.
//
// The inventory (a ConfigMap per app in [Namespace]) is a cache. Where it is lost it is made again from the labels on the objects.
//
// It leaves out: rendering, judging over time (soak, deadlines, what was sick before), undo, and drift repair on a timer.
package apps
