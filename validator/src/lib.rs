//! Turns delivered service into charges and weights: the validator and treasury roles.
