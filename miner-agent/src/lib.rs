//! Runs leases on a host.
