"""Instructions of the real Arm kernels, counted under emulation, divided by what a device does in a millisecond.

cores      which kernels the libraries choose          environment   emulator, plugin and programs, once built
setup      builds them from packages                   emulation     runs a program and reads the plugin's counts
counting   a bundle's answers, by exit                 calibration   instructions → milliseconds, with uncertainty
results    the schema of the records                   compare       an exact regression gate between two of them
mobilenets, validate                                   nets with published latencies; how far off the method is
"""
