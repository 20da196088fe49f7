//! The examples for users, run as they stand: a backend in Python, and a shell script.
