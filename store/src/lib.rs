//! All SQL of the Nave market, and the private Postgres of one machine.
