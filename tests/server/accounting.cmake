# An NVML of our own under the name of the real one: what links it also gets it from dlopen.
add_library(fewbit_fake_nvml SHARED fake_nvml.cc)
target_link_libraries(fewbit_fake_nvml PRIVATE fewbit_options)
set_target_properties(fewbit_fake_nvml PROPERTIES OUTPUT_NAME nvidia-ml VERSION 1 SOVERSION 1)

fewbit_test(device_meter_test SOURCES device_meter_test.cc LIBS fewbit_server LABELS server)
fewbit_test(accounting_test SOURCES accounting_test.cc LIBS fewbit_server_testing fewbit_fake_nvml LABELS server)
fewbit_test(device_sensors_test SOURCES device_sensors_test.cc LIBS fewbit_server_testing fewbit_fake_nvml LABELS server)

# For the dashboards' tests: a server like any other whose device is imaginary, its GPU too.
add_executable(fake-gpu-server fake_gpu_server.cc)
target_link_libraries(fake-gpu-server PRIVATE fewbit_server_testing fewbit_fake_nvml GTest::gtest)

add_executable(metrics-reference metrics_reference.cc)
target_link_libraries(metrics-reference PRIVATE fewbit_server)
