"""One planner a module, all behind `services.placement.problem.Planner`."""
