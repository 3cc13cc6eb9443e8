//! Places jobs on hosts: a pure planner and the role that carries its plans out.
