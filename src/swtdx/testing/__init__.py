"""What comes with swtdx for the tests of others: a pytest plugin (``docs/pytest.md``)."""
