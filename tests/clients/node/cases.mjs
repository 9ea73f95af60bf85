// Runs a client's cases against the router that the command line names, and tells what became of
// each: a line of JSON, null where it did what its first page shows, else why not.
export const MODEL = "tiny";
export const KEY = "none";
export const QUESTION = "What is the weather in Paris?";

export async function run(cases) {
  const url = process.argv[2];
  const outcomes = {};
  for (const [name, told] of Object.entries(cases)) {
    try {
      await told(url);
      outcomes[name] = null;
    } catch (error) {
      console.error(error);
      outcomes[name] = String(error).split("\n")[0].slice(0, 300);
    }
  }
  console.log(JSON.stringify(outcomes));
}
