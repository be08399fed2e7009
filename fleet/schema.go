package fleet

import "reflect"

// kinds are the documents of a fleet repo.
var kinds = map[string]reflect.Type{
	"Fleet":      reflect.TypeFor[FleetSpec](),
	"Trust":      reflect.TypeFor[TrustSpec](),
	"Class":      reflect.TypeFor[ClassSpec](),
	"Ring":       reflect.TypeFor[RingSpec](),
	"OS":         reflect.TypeFor[OSSpec](),
	"App":        reflect.TypeFor[AppSpec](),
	"ImagesLock": reflect.TypeFor[ImagesLockSpec](),
	"Site":       reflect.TypeFor[SiteSpec](),
	"Machines":   reflect.TypeFor[MachinesSpec](),
}

func specNames(kind string) []string { return planOf(kinds[kind]).names }
