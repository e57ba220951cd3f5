//! Harness and workloads with known answers for Tieback.
