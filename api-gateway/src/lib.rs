//! The customers' REST API and the hosts' protocol.
