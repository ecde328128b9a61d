"""The rules of the QUASAR subnet and its wire formats: pure functions and plain data, no I/O, no clocks."""
