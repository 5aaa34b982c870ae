# Checkpoint readers and writer, config, arch table.
fewbit_test(checkpoint_test SOURCES checkpoint_test.cc LIBS fewbit_models)
