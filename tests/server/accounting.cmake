fewbit_test(device_meter_test SOURCES device_meter_test.cc LIBS fewbit_server LABELS server)
fewbit_test(accounting_test SOURCES accounting_test.cc LIBS fewbit_server_testing LABELS server)
target_compile_definitions(accounting_test PRIVATE FEWBIT_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
