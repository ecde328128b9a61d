def test_a():
    import tests.fakes.clock
