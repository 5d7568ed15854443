// What a dashboard's file may hold, by Grafana's own types. An enum is its text in JSON, and of a panel's options Grafana fills in
// those that are left out. Queries are a plugin's: their types are in no package, and Prometheus itself is asked in another test.
import type { Dashboard, FieldConfig, FieldConfigSource, GraphFieldConfig, Panel } from "@grafana/schema";
import type { Options as GraphOptions } from "@grafana/schema/dist/types/raw/composable/timeseries/panelcfg/x/types.gen";
import type { Options as StatOptions } from "@grafana/schema/dist/types/raw/composable/stat/panelcfg/x/types.gen";

type Wire<T> = T extends string ? `${T}` : T extends object ? { [K in keyof T]: Wire<T[K]> } : T;
type Source<Custom> = Omit<FieldConfigSource, "defaults"> & { defaults: Omit<FieldConfig, "custom"> & { custom?: Custom } };
type Of<Kind, Options, Custom> = Omit<Panel, "type" | "options" | "fieldConfig"> & {
  type: Kind;
  options: Partial<Options>;
  fieldConfig: Source<Custom>;
};
type Board = Omit<Dashboard, "panels"> & {
  panels: (Of<"timeseries", GraphOptions, GraphFieldConfig> | Of<"stat", StatOptions, Record<string, never>>)[];
};
export type File = Wire<Board>;
