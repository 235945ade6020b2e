// Loaded by mocha before the tests: every compiled graph is verified after every pass.
process.env.MESHWORK_VERIFY = "1";
