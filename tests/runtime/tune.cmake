# The operators of tuning, a layer's tape and the tuner.
fewbit_test(gradients_test SOURCES ../kernels/gradients_test.cc LIBS fewbit_kernels LABELS kernels)
