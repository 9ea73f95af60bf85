"""One planner a module, all behind `services.placement.search.problem.Planner`."""
