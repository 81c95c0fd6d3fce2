// Validates objects of the Prometheus operator, given as JSON, by its CRDs' schemas. Runs as
// `node --input-type=module` in the folder that holds node_modules, where imports are then looked for.
for (const tree of JSON.parse(process.env.OBJECTS)) {
  const path = `@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/${tree.kind}`;
  const { [tree.kind]: Kind } = await import(path);
  new Kind(tree).validate();
}
