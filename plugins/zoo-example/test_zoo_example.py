from zoo_example import PowerLaw

from zoo.testing import checks


@checks(PowerLaw)
def test_power_law(check):
    check()
