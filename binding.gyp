# A thin door for node-gyp: CMakeLists.txt is the one definition of the build.
{
  "targets": [
    {
      "target_name": "meshwork",
      "type": "none",
      "actions": [
        {
          "action_name": "cmake",
          "inputs": ["CMakeLists.txt", "<!@(node scripts/build-native.mjs --list-inputs)"],
          "outputs": ["build-native/meshwork.node"],
          "action": ["node", "scripts/build-native.mjs"]
        }
      ]
    }
  ]
}
